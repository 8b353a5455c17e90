package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Every key of every section is a variable too, EnvPrefix SECTION _ KEY: CULVERT_INTERFACE_PRIVATE_KEY, or with a number where there
// may be several sections: CULVERT_PEER_1_PUBLIC_KEY. With _FILE behind it the variable names a file that holds the value.

// EnvPrefix begins the names of Culvert's own variables.
const EnvPrefix = "CULVERT_"

// RelayEnvPrefix begins those that the configuration of a relay can be made of, which has sections by the same names as a node's.
// The keys of its [Relay] follow at once: CULVERT_RELAYD_URL, but CULVERT_RELAYD_STUN_LISTEN.
const RelayEnvPrefix = EnvPrefix + "RELAYD_"

const (
	fileSuffix = "_FILE"
	noNumber   = -1 // of a section whose variables have none
)

// envNames is how the variables of one kind of configuration are named.
type envNames struct {
	prefix string
	plain  string // the section whose name its variables go without; "": none
}

// section returns what the names of a section's variables begin with.
func (n envNames) section(section string, number int) string {
	if section == n.plain {
		return strings.TrimSuffix(n.prefix, "_")
	}
	name := n.prefix + strings.ToUpper(section)
	if number != noNumber {
		name += "_" + strconv.Itoa(number)
	}
	return name
}

// cut takes the name of a variable apart; it is not ours if it has not the prefix, or has that of the other kind.
func (n envNames) cut(kinds []sectionKind, name string) (kind *sectionKind, section, key string, ours bool) {
	rest, ours := strings.CutPrefix(name, n.prefix)
	if !ours || n.prefix == EnvPrefix && strings.HasPrefix(name, RelayEnvPrefix) {
		return nil, "", "", false
	}
	section, key, _ = strings.Cut(rest, "_")
	if kind = sectionOf(kinds, section); kind == nil && n.plain != "" {
		kind, key = sectionOf(kinds, n.plain), rest
	}
	return kind, section, key, true
}

// Variable is a variable of the environment that is part of a configuration.
type Variable struct {
	Name    string `json:"name"`
	Section string `json:"section"` // as in a file, without brackets
	Key     string `json:"key"`

	// Place of what it takes the place of in the file; "": of nothing.
	Replaces string `json:"replaces,omitempty"`
}

// variable is one of them as it is read.
type variable struct {
	Variable
	kind   *sectionKind
	key    *keyInfo
	number int
	value  string
	file   bool // value names a file
}

// HasEnvironment reports whether some of the variables, each "NAME=value", are part of a configuration, or are meant to be.
func HasEnvironment(environ []string) bool {
	l := &loader{kinds: nodeSections(), names: envNames{prefix: EnvPrefix}}
	return len(l.variables(environ)) > 0 || len(l.faults) > 0 || len(l.misspelt) > 0
}

// environmentSections returns the sections that the environment holds: by their order in the list of sections, then by number.
func (l *loader) environmentSections(environ []string) (sections []section) {
	vars := l.variables(environ)
	for i, v := range vars {
		l.cfg.Environment = append(l.cfg.Environment, v.Variable)
		if i == 0 || v.kind.name != vars[i-1].kind.name || v.number != vars[i-1].number {
			sections = append(sections, section{name: v.kind.name, line: l.addOrigin(origin{name: l.names.section(v.kind.name, v.number)})})
		}
		last := &sections[len(sections)-1]
		last.entries = append(last.entries, l.entriesOf(&v)...)
	}
	return sections
}

// variables finds those that are part of a configuration, in order. What looks like one and is none is a fault.
func (l *loader) variables(environ []string) (list []variable) {
	environ = slices.Sorted(slices.Values(environ))
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		kind, section, key, ours := l.names.cut(l.kinds, name)
		if !ours || value == "" { // compose files pass on what is not set as empty
			continue
		}
		v := variable{Variable: Variable{Name: name}, kind: kind, value: value, number: noNumber}
		if v.kind == nil {
			l.misspeltSection(name, section, key)
			continue
		}
		if !v.parse(key) {
			if !isServiceLink(key, value) {
				l.unknownVariable(&v, key)
			}
			continue
		}
		if v.kind.single && v.number != noNumber {
			l.faultOf(name, "there is one [%s] only: leave the number out", v.kind.name)
			continue
		}
		list = append(list, v)
	}
	order := func(v variable) int {
		return slices.IndexFunc(l.kinds, func(k sectionKind) bool { return k.name == v.kind.name })
	}
	slices.SortStableFunc(list, func(a, b variable) int {
		return cmp.Or(cmp.Compare(order(a), order(b)), cmp.Compare(a.number, b.number))
	})
	return list
}

// parse reads what stands behind the section: a number, if there is one, and a key.
func (v *variable) parse(s string) bool {
	if digits, rest, ok := strings.Cut(s, "_"); ok && digits != "" && strings.Trim(digits, "0123456789") == "" {
		n, err := strconv.Atoi(digits)
		if err != nil {
			return false
		}
		v.number, s = n, rest
	}
	v.Section = v.kind.name
	find := func(s string) bool {
		s = strings.ReplaceAll(s, "_", "")
		i := slices.IndexFunc(v.kind.keys, func(k keyInfo) bool { return strings.EqualFold(k.name, s) })
		if i >= 0 {
			v.key, v.Key = &v.kind.keys[i], v.kind.keys[i].name
		}
		return i >= 0
	}
	if name, ok := strings.CutSuffix(s, fileSuffix); ok && !v.kind.hasFileKey(s) && find(name) {
		v.file = true
		return true
	}
	return find(s)
}

// hasFileKey reports whether a word that ends in _FILE is a key of its own, not one that stands for the content of a file.
func (k *sectionKind) hasFileKey(s string) bool {
	s = strings.ReplaceAll(s, "_", "")
	return slices.ContainsFunc(k.keys, func(k keyInfo) bool { return strings.EqualFold(k.name, s) && k.slot == k.name })
}

// isServiceLink reports whether a variable is one that Kubernetes sets for a service named culvert-SECTION in the pod's namespace.
func isServiceLink(key, value string) bool {
	if strings.HasPrefix(key, "SERVICE_HOST") || strings.HasPrefix(key, "SERVICE_PORT") {
		return true
	}
	if key == "PORT" {
		return strings.Contains(value, "://")
	}
	words := strings.Split(key, "_") // PORT_443_TCP_ADDR
	return len(words) >= 3 && words[0] == "PORT" && strings.Trim(words[1], "0123456789") == ""
}

// misspeltSection notes a variable that would be one of a section with nearly this name.
func (l *loader) misspeltSection(name, section, key string) {
	var names []string
	for _, k := range l.kinds {
		names = append(names, strings.ToUpper(k.name))
	}
	if base := strings.TrimRight(section, "0123456789"); base != section { // PEER1_NAME
		if k := sectionOf(l.kinds, base); k != nil && !k.single {
			section, key = base, section[len(base):]+"_"+key
		}
	}
	near := sectionOf(l.kinds, Nearest(section, names))
	if near == nil {
		return
	}
	if v := (variable{kind: near}); v.parse(key) {
		l.known(name)
		message := fmt.Sprintf("is not used; did you mean %s_%s?", l.names.section(near.name, noNumber), key)
		l.misspelt = append(l.misspelt, Diagnostic{name, 0, message})
	}
}

// unknownVariable reports a variable with the name of a section and no key of it.
func (l *loader) unknownVariable(v *variable, key string) {
	if digits, rest, ok := strings.Cut(key, "_"); ok && strings.Trim(digits, "0123456789") == "" {
		key = rest
	}
	var names []string
	for _, k := range v.kind.keys {
		names = append(names, envKey(k.name))
	}
	if key == "" || strings.Trim(key, "0123456789") == "" {
		l.faultOf(v.Name, "names the section [%s] and no key of it, such as %s_%s", v.kind.name, l.names.section(v.kind.name, v.number), names[0])
		return
	}
	hint := ""
	if near := Nearest(key, names); near != "" {
		hint = "; did you mean " + l.names.section(v.kind.name, v.number) + "_" + near + "?"
	}
	l.faultOf(v.Name, "[%s] has no such key%s", v.kind.name, hint)
}

// faultOf is a fault of a variable as a whole.
func (l *loader) faultOf(name, format string, args ...any) {
	l.known(name)
	l.faultAt(name, 0, format, args...)
}

// entriesOf returns what a variable says: an entry for each of its values.
func (l *loader) entriesOf(v *variable) (entries []entry) {
	add := func(value string, index int) {
		e := entry{key: v.key.name, value: value, line: l.addOrigin(origin{name: v.Name, index: index}), literal: true}
		if v.file {
			e.hidden = v.Name
		}
		entries = append(entries, e)
	}
	text := v.value
	if v.file {
		var ok bool
		if text, ok = l.valueFile(v.Name, v.value); !ok {
			add("", 0)
			entries[0].faulty = true
			return entries
		}
	}
	values := []string{text}
	if v.key.list {
		values = strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == ';' && !v.key.lines })
	}
	several := len(values) > 1
	for i, s := range values {
		index := 0
		if several {
			index = i + 1
		}
		if s = strings.TrimSpace(s); s != "" || !several {
			add(s, index)
		}
	}
	if len(entries) == 0 { // blank, which must not mean that the key is not given
		add("", 0)
	}
	return entries
}

// valueFile reads the file that a variable names. Secrets that an orchestrator mounts are readable to all inside the container, so
// that its mode says nothing.
func (l *loader) valueFile(name, file string) (text string, ok bool) {
	if file = strings.TrimSpace(file); looksSecret(file) {
		l.faultOf(name, "this is a key, not the name of a file that holds one")
		return "", false
	}
	content, err := l.readFile(file)
	if err != nil {
		l.faultOf(name, "read %s: %v", file, cause(err))
		return "", false
	}
	return strings.TrimSpace(string(content.bytes)), true
}
