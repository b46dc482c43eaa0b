"""What the page of the leaderboard is made of: its template, style and script."""
