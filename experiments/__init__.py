"""What trains, measures and publishes: it imports the package, never the other way."""
