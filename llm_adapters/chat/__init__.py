"""Messages of a chat: their template, their parts, and media in them that nothing would read."""
