"""The parts of the page: the map editor, running jobs, links, and the functions behind the buttons."""
