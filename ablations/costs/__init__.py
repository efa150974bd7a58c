"""What the rows of a report cost: counted and measured."""
