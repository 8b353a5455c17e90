package config

import (
	"cmp"
	"slices"
	"strings"
)

// Extra is a section that stands in no file, but was asked for by an option of the command line.
type Extra struct {
	Option  string // as it was given, "-L 5432:db:5432": begins what there is to say of it
	Section string // "Forward"
	Keys    []ExtraKey
}

// ExtraKey is one "Key = value" of an Extra.
type ExtraKey struct {
	Key, Value string
	Option     string // where the value comes from another option than the section; "": it does not
}

func (l *loader) extraSections(list []Extra) (sections []section) {
	for _, x := range list {
		s := section{name: x.Section, line: l.addOrigin(origin{name: x.Option, option: true})}
		for _, k := range x.Keys {
			line := l.addOrigin(origin{name: cmp.Or(k.Option, x.Option), option: true})
			s.entries = append(s.entries, entry{key: k.Key, value: k.Value, line: line, literal: true})
		}
		sections = append(sections, s)
	}
	return sections
}

// overlay puts sections on top of those of the file. A section that may be there once takes the keys on top of it, all values of
// such a key in the file giving way to the new ones; others are added.
func (l *loader) overlay(file, top []section) []section {
	for _, s := range top {
		k := sectionOf(l.kinds, s.name)
		if k == nil || !k.single {
			file = append(file, s)
			continue
		}
		first := -1
		for i := range file {
			if !strings.EqualFold(file[i].name, k.name) {
				continue
			}
			if first < 0 {
				first = i
			}
			file[i].entries = l.giveWay(k, file[i].entries, s.entries)
		}
		if first < 0 {
			file = append(file, s)
		} else {
			file[first].entries = append(file[first].entries, s.entries...)
		}
	}
	return file
}

// giveWay returns the entries without those that others take the place of.
func (l *loader) giveWay(k *sectionKind, entries, others []entry) []entry {
	slot := func(name string) string {
		for _, key := range k.keys {
			if strings.EqualFold(key.name, name) {
				return key.slot
			}
		}
		return ""
	}
	return slices.DeleteFunc(entries, func(e entry) bool {
		i := slices.IndexFunc(others, func(o entry) bool { return slot(o.key) != "" && slot(o.key) == slot(e.key) })
		if i < 0 || e.line < 0 {
			return false
		}
		name, _ := l.place("", others[i].line)
		for j := range l.cfg.Environment {
			if v := &l.cfg.Environment[j]; v.Name == name && v.Replaces == "" {
				v.Replaces = Position(l.cfg.File, e.line)
			}
		}
		return true
	})
}
