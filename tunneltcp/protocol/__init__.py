"""The protocol of a link, sans-I/O: standard library only, no sockets, no clock, no logs."""
