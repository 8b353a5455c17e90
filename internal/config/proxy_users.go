package config

import (
	"errors"
	"path/filepath"
	"strings"
)

const maxSecret = 255 // bytes of a name or password, RFC 1929 section 2

var errUser = errors.New("want NAME:PASSWORD, each of 1 to 255 bytes, and no + in the name, which picks an exit")

// addUser reads "NAME:PASSWORD", where the password may be $VAR or ${VAR} as a whole. No error shows anything of it.
func (l *loader) addUser(t *proxyDraft, v value) error {
	name, password, ok := strings.Cut(v.text, ":")
	if !ok {
		return errUser
	}
	if variable, is := variableName(password); is && v.variable == "" && !v.literal {
		if password, ok = l.LookupEnv(variable); !ok {
			return errors.New("the environment variable " + variable + " is not set")
		}
	} else if v.variable == "" && v.line > 0 {
		l.literal = true
	}
	return t.addUser(strings.TrimSpace(name), password)
}

func (t *proxyDraft) addUser(name, password string) error {
	switch {
	case name == "" || len(name) > maxSecret || strings.ContainsAny(name, "+:") || password == "" || len(password) > maxSecret:
		return errUser
	case t.names[name]:
		return errors.New("there is a user of that name already")
	}
	t.names[name] = true
	t.Users = append(t.Users, ProxyUser{name, password})
	return nil
}

// addUsersFile reads a file of users. Its faults carry its own name.
func (l *loader) addUsersFile(t *proxyDraft, v value) error {
	name := v.text
	if name == "" {
		return errors.New("no file is named")
	}
	if looksSecret(name) {
		return errors.New("this is a key, not the name of a file")
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(l.file), name)
	}
	text, err := l.readFile(name)
	if err != nil {
		return errors.New("read " + name + ": " + cause(err).Error())
	}
	if v.line > 0 { // what an orchestrator mounts is readable to all inside the container
		l.warnMode(name, text)
	}
	before := len(t.Users)
	faults := 0
	for i, line := range allowLines(text.bytes) {
		if line = strings.TrimRight(line, "\r\n"); strings.TrimSpace(line) == "" || strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		user, password, ok := strings.Cut(line, ":")
		if err = errUser; ok {
			err = t.addUser(strings.TrimSpace(user), password)
		}
		if err != nil && faults < mostFaults {
			l.known(name)
			l.faults = append(l.faults, Diagnostic{name, i + 1, err.Error()})
			faults++
		}
	}
	if len(t.Users) == before && faults == 0 {
		return errors.New(name + " has no users in it; without the key nobody is asked for a password")
	}
	return nil
}
