"""What a person sees of a run: progress, figures, a page."""
