"""The leaderboard as data: checks and rendering."""
