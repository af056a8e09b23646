"""What the author of a feature in another package tests it with: :func:`.conformance.check_feature`."""
