"""Editors of hints: gradio components that show a hint in the browser and send it back exactly."""
