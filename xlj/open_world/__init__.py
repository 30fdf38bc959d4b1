"""Examples of no known label, and distances between labels."""
