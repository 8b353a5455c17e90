package proxy

import (
	"slices"
	"strings"
)

// perHop are the fields that concern one connection and are not passed on (RFC 9110 section 7.6.1), besides those that
// Connection names. What a message needs of Connection, TE, Trailer, Transfer-Encoding and Upgrade is written anew.
func perHop(name string) bool {
	switch strings.ToLower(name) {
	case "connection", "proxy-connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade",
		"proxy-authenticate", "proxy-authorization", "proxy-authentication-info":
		return true
	}
	return false
}

// connectionOptions returns the names in the Connection fields, in lower case.
func connectionOptions(h httpFields) []string {
	var options []string
	for _, name := range []string{"Connection", "Proxy-Connection"} {
		for _, value := range h.values(name) {
			for option := range strings.SplitSeq(value, ",") {
				if option = strings.ToLower(strings.Trim(option, " \t")); option != "" {
					options = append(options, option)
				}
			}
		}
	}
	return options
}

// endToEnd returns the fields to pass on. Host and the length stay even if Connection names them: that is an attempt
// to make the next server read another message.
func endToEnd(h httpFields) httpFields {
	options := connectionOptions(h)
	kept := make(httpFields, 0, len(h)+3)
	for _, f := range h {
		if perHop(f.name) {
			continue
		}
		if len(options) > 0 {
			name := strings.ToLower(f.name)
			if slices.Contains(options, name) && name != "host" && name != "content-length" {
				continue
			}
		}
		kept = append(kept, f)
	}
	return kept
}

// without returns the fields but those of that name; the slice is reused.
func (h httpFields) without(name string) httpFields {
	return slices.DeleteFunc(h, func(f httpField) bool { return strings.EqualFold(f.name, name) })
}

// trailerFields returns the trailer fields to pass on: none that frames or routes a message (RFC 9110 section 6.5.1).
func trailerFields(h httpFields) httpFields {
	return slices.DeleteFunc(slices.Clone(h), func(f httpField) bool {
		switch name := strings.ToLower(f.name); name {
		case "content-length", "host":
			return true
		default:
			return perHop(name)
		}
	})
}
