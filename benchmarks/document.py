"""A job's status document of the usual size, for measurements without the service."""

from jobcache import Document

DOCUMENT = Document(
    version=7,
    owner="acme",
    body=(
        b'{"id":41,"client_id":"acme","prompt":"A fox crosses a frozen river at night, meets a bear'
        b' and shares its fish.","status":"rendering","terminal":false,"progress":{"percent":35.0,'
        b'"stage":"drawing scene 3 of 6","message":"step 7 of 20","updated_at":'
        b'"2026-01-31T10:00:42.250000Z"},"version":7,"error":null,"storyboard_url":'
        b'"/api/v2/jobs/41/storyboard","video_url":null,"created_at":"2026-01-31T10:00:00Z",'
        b'"updated_at":"2026-01-31T10:00:42.250000Z"}'
    ),
    status="rendering",
    poll_after=6,
)
