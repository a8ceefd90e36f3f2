"""The bench for style methods: tasks, methods, and scores against the truth."""
