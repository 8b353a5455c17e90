package config

import (
	"slices"
	"strings"
)

// hasName reports whether one of the names is name, in upper or lower case.
func hasName(names []string, name string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, name) })
}

// ignoredKey returns why a key that other programs put into a wg-quick file has no effect here.
func ignoredKey(section, key string) (reason string, ok bool) {
	if !strings.EqualFold(section, "Interface") {
		return "", false
	}
	switch strings.ToLower(key) {
	case "preup", "postup", "predown", "postdown":
		return "culvert runs no commands", true
	case "table", "fwmark":
		return "culvert changes no routes of this host", true
	case "saveconfig":
		return "culvert never rewrites its configuration while running", true
	case "includedapplications", "excludedapplications":
		return "it chooses apps on Android", true
	}
	return "", false
}

// A dialect is a protocol that looks like WireGuard's configuration but is another protocol on the wire.
type dialect struct {
	keys    []string
	message string
}

var dialects = []dialect{
	{
		keys: []string{
			"Jc", "Jmin", "Jmax", "S1", "S2", "S3", "S4", "H1", "H2", "H3", "H4", "I1", "I2", "I3", "I4", "I5",
			"AdvancedSecurity",
		},
		message: "this file is for AmneziaWG, which is not WireGuard on the wire: ask the provider for a plain WireGuard file",
	},
	{
		keys:    []string{"Reserved", "ClientID"},
		message: "this file is for Cloudflare WARP with altered packet headers, which is not WireGuard on the wire: culvert cannot use it",
	},
}

// foreignDialect returns the dialect a key belongs to, or nil.
func foreignDialect(key string) *dialect {
	for i := range dialects {
		for _, k := range dialects[i].keys {
			if strings.EqualFold(k, key) {
				return &dialects[i]
			}
		}
	}
	return nil
}
