"""One file per command: its arguments, one call of a public function, text out."""
