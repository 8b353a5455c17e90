package config

import (
	"cmp"
	"errors"
	"path/filepath"
	"strings"
	"unicode"
)

// readSection applies the entries of s to t by the section's table. seen maps the slots given so far to their lines.
func readSection[T any](l *loader, s section, keys []key[T], t *T, seen map[string]int) {
	file := l.file
	defer func() { l.file = file }()
	for _, e := range s.entries {
		if l.file = file; e.line < 0 {
			l.file = "" // names of files in the environment are relative to the working directory
		}
		k := findKey(keys, e.key)
		if k == nil {
			l.unknownKey(s.name, e, keyNames(keys))
			continue
		}
		slot := k.slotName()
		first, given := seen[slot]
		if !given {
			seen[slot] = e.line
		} else if !k.list {
			l.fault(e.line, "%s: %s is already given %s", k.name, slot, l.at(first))
			continue
		}
		if e.faulty {
			continue
		}
		if k.stock && !e.literal {
			e.value, _, _ = strings.Cut(e.value, "#")
			e.value = strings.TrimSpace(e.value)
		}
		text, variable, ok := l.expand(k.name, e)
		if !ok {
			continue
		}
		if err := k.set(l, t, value{text, variable, e.line, e.literal}); err != nil {
			l.fault(e.line, "%s: %v", k.name, withoutValue(err, variable))
		}
		if (k.name == "PrivateKey" || k.name == "PresharedKey") && variable == "" && e.line > 0 {
			l.literal = true
		}
	}
}

// slotName is what a key shares with others that exclude it.
func (k *key[T]) slotName() string { return cmp.Or(k.slot, k.name) }

func findKey[T any](keys []key[T], name string) *key[T] {
	for i := range keys {
		if strings.EqualFold(keys[i].name, name) {
			return &keys[i]
		}
	}
	return nil
}

func keyNames[T any](keys []key[T]) []string {
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.name
	}
	return names
}

// expand looks up a value that is $VAR or ${VAR} as a whole and returns the variable's name too. A value that comes from a variable
// already is taken as it is.
func (l *loader) expand(key string, e entry) (text, variable string, ok bool) {
	name, isVariable := variableName(e.value)
	if e.literal {
		return e.value, e.hidden, true
	}
	if !isVariable {
		return e.value, "", true
	}
	text, ok = l.LookupEnv(name)
	if !ok {
		l.fault(e.line, "%s: the environment variable %s is not set", key, name)
	}
	return strings.TrimSpace(text), name, ok
}

// variableName returns the name in a text that is $VAR or ${VAR} as a whole.
func variableName(s string) (name string, ok bool) {
	name, ok = strings.CutPrefix(s, "$")
	if inner, found := strings.CutPrefix(name, "{"); ok && found {
		name, ok = strings.CutSuffix(inner, "}")
	}
	return name, ok && name != "" && !strings.ContainsFunc(name, notVariable)
}

func notVariable(r rune) bool {
	return r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '_'
}

// withoutValue keeps what came from the environment out of a message.
func withoutValue(err error, variable string) error {
	var r *rejection
	var p *pointer
	switch {
	case variable == "":
		return err
	case errors.As(err, &p):
		return errors.New("the value of $" + variable + " is not a valid one")
	case !errors.As(err, &r):
		return err
	}
	return errors.New("the value of $" + variable + " " + r.reason)
}

// secretFile reads the key in a file beside the current one.
func (l *loader) secretFile(name string) (string, error) {
	if name == "" {
		return "", errors.New("no file is named")
	}
	if looksSecret(name) {
		return "", errors.New("this is a key, not the name of a file that holds one")
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(l.file), name)
	}
	text, err := l.readFile(name)
	if err != nil {
		return "", err
	}
	l.warnMode(name, text)
	return strings.TrimSpace(string(text.bytes)), nil
}

// unknownSection reports a section that no table describes.
func (l *loader) unknownSection(s section) {
	if !isWord(s.name) {
		l.fault(s.line, "unknown section")
		return
	}
	if hint := l.format.foreign(s.name, ""); hint != "" {
		l.fault(s.line, "[%s] %s", s.name, hint)
		return
	}
	l.fault(s.line, "unknown section [%s]%s", s.name, didYouMean("[", Nearest(s.name, l.format.sections), "]"))
}

// unknownKey reports a key that is not in its section's table: ignored, of another protocol, misplaced or misspelt.
func (l *loader) unknownKey(section string, e entry, known []string) {
	if l.format.wgQuick && l.otherProgram(section, e) {
		return
	}
	near := Nearest(e.key, known)
	home, hint := l.format.home(e.key), l.format.foreign(section, e.key)
	switch {
	case !isWord(e.key):
		l.fault(e.line, "not a key of [%s]", section) // not shown: the line may be a bare key that ends in =
	case hint != "":
		l.fault(e.line, "%s in [%s] %s", e.key, section, hint)
	case home != "":
		l.fault(e.line, "%s belongs in [%s], not in [%s]", e.key, home, section)
	default:
		l.fault(e.line, "unknown key %s in [%s]%s", e.key, section, didYouMean("", near, ""))
	}
}

// otherProgram reports a key that other programs put into wg-quick files, and whether it is one.
func (l *loader) otherProgram(section string, e entry) bool {
	if reason, ok := ignoredKey(section, e.key); ok {
		l.warn(e.line, "%s is ignored: %s", e.key, reason)
		return true
	}
	d := foreignDialect(e.key)
	if d != nil && l.foreign != d {
		l.fault(e.line, "%s: %s", e.key, d.message)
		l.foreign = d
	}
	return d != nil
}

// isWord reports whether s may be shown: a key or section name, and too short for a secret.
func isWord(s string) bool {
	const longest = 24
	notLetter := func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r) }
	return s != "" && len(s) <= longest && !strings.ContainsFunc(s, notLetter)
}

func didYouMean(open, name, end string) string {
	if name == "" {
		return ""
	}
	return "; did you mean " + open + name + end + "?"
}
