"""Messages of a chat: their template, parts, media that nothing would read, and videos by their files."""
