package config

import (
	"errors"
	"strings"
)

// What follows are the options of ssh(1): ports in the order in which the traffic goes. They are split here, and checked as the
// sections are that they stand for.

// ForwardOption reads [BIND:]PORT:HOST:HOSTPORT[/udp] or PATH:HOST:HOSTPORT of an option such as -L. IPv6 addresses stand in brackets,
// ports may be ranges.
func ForwardOption(option, s string) (Extra, error) {
	fields, suffix, err := splitShorthand(s)
	if err != nil {
		return Extra{}, err
	}
	listen := ""
	switch {
	case len(fields) == 3 && isSocketPath(fields[0]):
		listen = "unix:" + strings.TrimPrefix(fields[0], "unix:") + suffix
	case len(fields) == 3:
		listen = fields[0] + suffix
	case len(fields) == 4:
		listen = fields[0] + ":" + fields[1] + suffix
	default:
		return Extra{}, errors.New("want [BIND:]PORT:HOST:HOSTPORT, such as 5432:db:5432, or SOCKET:HOST:HOSTPORT; IPv6 addresses stand in brackets")
	}
	to := strings.Join(fields[len(fields)-2:], ":")
	return shorthand(option, s, "Forward", ExtraKey{Key: "Listen", Value: listen}, ExtraKey{Key: "To", Value: to})
}

// PublishOption reads PORT:HOST:HOSTPORT[/udp], PORT:HOSTPORT[/udp] of 127.0.0.1, or PORT:PATH, of an option such as -R.
func PublishOption(option, s string) (Extra, error) {
	fields, suffix, err := splitShorthand(s)
	if err != nil {
		return Extra{}, err
	}
	to := ""
	switch {
	case len(fields) == 2 && isSocketPath(fields[1]):
		to = "unix:" + strings.TrimPrefix(fields[1], "unix:")
	case len(fields) == 2 && isPorts(fields[1]):
		to = fields[1]
	case len(fields) == 2:
		return Extra{}, errors.New("what follows PORT is neither a port of this host, as in 8443:443, nor a socket, as in 8443:/run/web.sock; a host goes with its port: 8443:db:443")
	case len(fields) == 3:
		to = fields[1] + ":" + fields[2]
	case len(fields) == 4:
		return Extra{}, errors.New("want PORT:HOST:HOSTPORT without an address in front: the ports are those of the mesh addresses")
	default:
		return Extra{}, errors.New("want PORT:HOST:HOSTPORT, such as 8443:127.0.0.1:443, PORT:HOSTPORT for this host, or PORT:SOCKET; IPv6 addresses stand in brackets")
	}
	return shorthand(option, s, "Publish", ExtraKey{Key: "Listen", Value: fields[0] + suffix}, ExtraKey{Key: "To", Value: to})
}

// ProxyOption reads [BIND:]PORT or PATH of an option such as -D: SOCKS and HTTP on one listener.
func ProxyOption(option, s string) (Extra, error) {
	listen := s
	switch fields, _, err := splitShorthand(s); {
	case err != nil:
		return Extra{}, err
	case strings.HasSuffix(s, "/udp") || strings.HasSuffix(s, "/tcp"):
		return Extra{}, errors.New("want [BIND:]PORT alone: UDP ASSOCIATE needs no listener of its own")
	case len(fields) == 1 && isSocketPath(s):
		listen = "unix:" + strings.TrimPrefix(s, "unix:")
	case len(fields) > 2:
		return Extra{}, errors.New("want [BIND:]PORT, such as 1080, or SOCKET; IPv6 addresses stand in brackets")
	}
	return shorthand(option, s, "SOCKS5", ExtraKey{Key: "Listen", Value: listen}, ExtraKey{Key: "HTTP", Value: "yes"})
}

func shorthand(option, s, section string, keys ...ExtraKey) (Extra, error) {
	return Extra{Option: option + " " + s, Section: section, Keys: keys}, nil
}

// splitShorthand splits at colons that do not stand in brackets, and cuts off /tcp or /udp.
func splitShorthand(s string) (fields []string, suffix string, err error) {
	if strings.ContainsAny(s, " \t\r\n,;#\x00") || looksSecret(s) { // none of them is part of an address, and some end one in a list
		return nil, "", errors.New("a character in it belongs to no address or path; lists are given by repeating the option")
	}
	for _, network := range []string{"/tcp", "/udp"} {
		if text, ok := strings.CutSuffix(s, network); ok && strings.Contains(text, ":") {
			s, suffix = text, network
		}
	}
	s, isUnix := strings.CutPrefix(s, "unix:")
	depth, start := 0, 0
	for i := range len(s) {
		switch s[i] {
		case '[':
			depth++
		case ']':
			depth--
		case ':':
			if depth == 0 {
				fields, start = append(fields, s[start:i]), i+1
			}
		}
	}
	if depth != 0 {
		return nil, "", errors.New("the brackets do not match")
	}
	if fields = append(fields, s[start:]); isUnix {
		fields[0] = "unix:" + fields[0]
	}
	return fields, suffix, nil
}

// isSocketPath tells a path from a port, as ssh does: by a slash. A name that ends in .sock or .socket will do too.
func isSocketPath(s string) bool {
	return strings.Contains(s, "/") || strings.HasSuffix(s, ".sock") || strings.HasSuffix(s, ".socket") || strings.HasPrefix(s, "unix:")
}
