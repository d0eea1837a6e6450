"""HTTP below the routes: connections, requests, limits, proxies, and the OpenAPI document."""
