"""AI services: the catalogue, serviceIds and their patterns, and the engine that a request names."""
