"""Rendering: from a prompt to a storyboard, and from an approved storyboard to a video."""
