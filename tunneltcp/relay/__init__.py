"""Where frames meet sockets."""
