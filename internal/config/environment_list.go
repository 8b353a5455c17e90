package config

import (
	"strings"
	"unicode"
)

// EnvironmentKey describes variables of one key.
type EnvironmentKey struct {
	Name string `json:"name"` // <N> stands for the number of a section; it and the _ in front may be left out
	Doc  string `json:"doc"`  // one line
	List bool   `json:"list"` // several values are separated by new lines and semicolons, or by new lines alone
}

// EnvironmentKeys lists the variables that a configuration can be made of, those with _FILE left out.
func EnvironmentKeys() []EnvironmentKey {
	return environmentKeys(nodeSections(), envNames{prefix: EnvPrefix})
}

// RelayEnvironmentKeys lists those that the configuration of a relay can be made of, likewise.
func RelayEnvironmentKeys() []EnvironmentKey {
	return environmentKeys(relaySections(), relayEnvNames())
}

func environmentKeys(kinds []sectionKind, names envNames) (list []EnvironmentKey) {
	for _, k := range kinds {
		section := names.section(k.name, noNumber)
		if !k.single {
			section += "_<N>"
		}
		for _, key := range k.keys {
			// The KeyFile of a key is its variable with _FILE.
			if base, ok := strings.CutSuffix(key.name, "File"); ok && hasName(k.keyNames(), base) && !k.hasFileKey(key.name) {
				continue
			}
			list = append(list, EnvironmentKey{section + "_" + envKey(key.name), key.doc, key.list})
		}
	}
	return list
}

// envKey writes a key as variables do: PRIVATE_KEY, ALLOWED_IPS, HARD_NAT.
func envKey(key string) string {
	var b strings.Builder
	runes := []rune(strings.TrimSuffix(key, "s"))
	for i, r := range runes {
		begins := i > 0 && unicode.IsUpper(r) && (!unicode.IsUpper(runes[i-1]) && !unicode.IsDigit(runes[i-1]) ||
			i+1 < len(runes) && unicode.IsLower(runes[i+1]))
		if begins {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToUpper(r))
	}
	if strings.HasSuffix(key, "s") {
		b.WriteByte('S')
	}
	return b.String()
}
