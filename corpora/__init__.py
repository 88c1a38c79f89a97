"""Public text and speech: fetched as pinned packages, cleaned, and turned into manifests."""
