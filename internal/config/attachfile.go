package config

import "fmt"

// AttachConfig is what culvert attach needs to know besides the WireGuard device: the sections of a node's configuration that are
// about relays and paths.
type AttachConfig struct {
	File      string // as given to LoadAttach; "": none
	Relays    []Relay
	STUN      []string
	WGSTUN    *WGSTUN // nil: none
	Traversal Traversal
	Control   Control // without FlowLog
	Warnings  []Diagnostic
}

// LoadAttach reads the configuration of culvert attach; file "" is an empty one. Sections that describe a node, whose part the device
// has here, are skipped: a node's file serves too, as do its variables. The error is Errors, or one that wraps the cause why file itself cannot be read
// (fs.ErrNotExist).
func LoadAttach(file string, o Options) (*AttachConfig, error) { return loadAttach(file, o, readFile) }

func loadAttach(file string, o Options, readFile func(string) (*content, error)) (*AttachConfig, error) {
	l := newLoader(o, readFile)
	l.format = attachFormat()
	l.cfg.File, l.unnamed = file, environmentName
	text := &content{}
	if file != "" {
		var err error
		if text, err = readFile(file); err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
	}
	sections := l.open(file, text)
	l.readAttach(file, l.overlay(sections, l.environmentSections(o.Environ)))
	l.close(text)
	l.checkRelays()
	l.checkSTUN()
	if line, given := l.controlKeys["FlowLog"]; given {
		l.warn(line, "FlowLog is not used: culvert attach sees no flows")
		l.cfg.Control.FlowLog = ""
	}
	if err := l.conclude(); err != nil {
		return nil, err
	}
	l.sort(l.warnings)
	return &AttachConfig{
		File: file, Relays: l.cfg.Relays, STUN: l.cfg.STUN, WGSTUN: l.cfg.WGSTUN, Traversal: l.cfg.Traversal, Control: l.cfg.Control,
		Warnings: l.warnings,
	}, nil
}

// attachFormat is that of the file of culvert attach: a node's.
func attachFormat() *format {
	f := nodeFormat()
	f.wgQuick = false
	return f
}

func (l *loader) readAttach(file string, sections []section) {
	skipped := map[string]bool{}
	for _, s := range sections {
		if l.file = file; s.line < 0 {
			l.file = ""
		}
		switch k := sectionOf(l.kinds, s.name); {
		case k == nil && s.name == "": // scan has reported it
		case k == nil:
			l.unknownSection(s)
		case k.attach:
			k.read(l, s)
		case !skipped[k.name]:
			l.warn(s.line, "[%s] is not used: culvert attach takes peers from the device, and forwards nothing", s.name)
			skipped[k.name] = true
		}
	}
	l.file = file
}
