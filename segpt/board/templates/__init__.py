"""What the pages are made of: their templates, styles and scripts."""
