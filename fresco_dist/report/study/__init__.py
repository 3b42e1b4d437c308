"""The user study of a comparison: its page, its votes, and the command that writes the one and counts the other."""
