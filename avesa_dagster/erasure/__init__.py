"""Offboarding: everything of one tenant goes, and a receipt says what went."""
