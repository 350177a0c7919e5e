"""Networks of the papers, as their state dicts name them. `table` lists them; nothing is trained here."""
