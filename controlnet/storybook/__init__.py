"""The drawn world, and the recipe of the embedded model that knows it. Nothing else imports this package."""
