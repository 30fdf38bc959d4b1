"""Many processes: how they meet, what they tell each other, who is lost."""
