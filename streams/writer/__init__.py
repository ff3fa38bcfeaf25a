"""The stage that turns an intent into a draft: words around slots."""
