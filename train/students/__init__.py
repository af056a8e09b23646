"""Students: what is trained, from scaled features to a logit. A method names its own."""
