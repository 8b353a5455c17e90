package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Options is where a configuration looks beyond its file. The zero value is the process's own surroundings.
type Options struct {
	State     string                      // the folder whose peers.d/*.conf are read too; "": none
	LookupEnv func(string) (string, bool) // of $VAR in a file; default os.LookupEnv
	Hostname  func() (string, error)      // default os.Hostname

	// Text, if set, is the configuration itself: the file of Load is not read then, but names what Text is, or nothing if "".
	Text string

	Sources
}

// Sources is what stands in no file and is part of a configuration all the same. The zero value is nothing.
type Sources struct {
	// Environ holds variables, each "NAME=value", of which CULVERT_SECTION_KEY are part of the configuration, such as
	// CULVERT_INTERFACE_PRIVATE_KEY and CULVERT_PEER_1_PUBLIC_KEY. They win over the file: of a section that may be there once, a
	// key's values in the file give way to the variable's; other sections are added. Variables that are options of a command are
	// not for here. Empty ones count as not set. Those of a relay are CULVERT_RELAYD_KEY, see LoadRelay.
	Environ []string

	// Extra are sections on top of all that.
	Extra []Extra
}

var errZeroKey = errors.New("the key is all zero")

// Load reads a configuration, its key files and its peers; file "" stands for none, where the environment holds it all. The error is
// Errors, or one that wraps the cause why file itself cannot be read (fs.ErrNotExist).
func Load(file string, o Options) (*Config, error) { return load(file, o, readFile) }

func load(file string, o Options, readFile func(string) (*content, error)) (*Config, error) {
	l := newLoader(o, readFile)
	if err := l.read(file); err != nil {
		return nil, err
	}
	return l.finish()
}

// read collects what the file, the sources beside it and the state folder say. The error is that of the file.
func (l *loader) read(file string) error {
	l.cfg.File, l.unnamed = file, environmentName
	text := &content{bytes: []byte(l.Text)}
	if l.Text != "" {
		l.unnamed = textName
	} else if file != "" {
		var err error
		if text, err = l.readFile(file); err != nil {
			return fmt.Errorf("read configuration: %w", err)
		}
	}
	sections := l.open(file, text)
	sections = l.overlay(sections, l.environmentSections(l.Environ))
	sections = l.overlay(sections, l.extraSections(l.Extra))
	l.readMain(file, sections)
	l.close(text)
	if l.State != "" {
		l.readPeerDir(filepath.Join(l.State, peerDir))
	}
	return nil
}

// loader collects drafts and faults while files are read one after the other.
type loader struct {
	Options
	readFile func(string) (*content, error)

	cfg           Config
	interfaceLine int // 0: no [Interface] yet
	interfaceKeys map[string]int
	filterKeys    map[string]int
	exitKeys      map[string]int
	traversalKeys map[string]int
	controlKeys   map[string]int
	peers         []*peerDraft
	netmaps       []*netmapDraft
	proxies       []*proxyDraft
	forwards      []*forwardDraft
	publishes     []*publishDraft
	upstream      upstreamDraft
	relays        []*relayDraft
	stun          stunDraft
	wgstun        wgstunDraft
	relay         relayFile // of culvert relay; of no other file

	format   *format
	kinds    []sectionKind
	names    envNames // of the variables of these sections
	origins  []origin
	file     string   // being read now
	files    []string // read so far, for the order of diagnostics
	literal  bool     // the current file contains a secret itself
	unnamed  string   // for a file that has no name
	foreign  *dialect // the last dialect reported for the current file
	faults   Errors
	warnings []Diagnostic
	misspelt []Diagnostic // variables of no section: a warning, and beside faults perhaps the cause of one
}

// peerDraft is a peer with the lines its checks need.
type peerDraft struct {
	Peer
	line  int            // of the section; Line is where it stands
	keys  map[string]int // slot to line of the first key
	lines []int          // of AllowedIPs, index for index
}

// claim adds a prefix unless the peer has it already.
func (p *peerDraft) claim(prefix netip.Prefix, line int) {
	if !slices.Contains(p.AllowedIPs, prefix) {
		p.AllowedIPs = append(p.AllowedIPs, prefix)
		p.lines = append(p.lines, line)
	}
}

func newLoader(o Options, readFile func(string) (*content, error)) *loader {
	if o.LookupEnv == nil {
		o.LookupEnv = os.LookupEnv
	}
	if o.Hostname == nil {
		o.Hostname = os.Hostname
	}
	return &loader{
		Options:       o,
		cfg:           Config{Traversal: defaultTraversal(), Exit: Exit{SOCKS5: true}},
		readFile:      readFile,
		format:        nodeFormat(),
		kinds:         nodeSections(),
		names:         envNames{prefix: EnvPrefix},
		interfaceKeys: map[string]int{},
		filterKeys:    map[string]int{},
		exitKeys:      map[string]int{},
		traversalKeys: map[string]int{},
		controlKeys:   map[string]int{},
	}
}

func (l *loader) fault(line int, format string, args ...any) {
	l.faults = append(l.faults, l.diagnostic(l.file, line, fmt.Sprintf(format, args...)))
}

func (l *loader) warn(line int, format string, args ...any) {
	l.warnings = append(l.warnings, l.diagnostic(l.file, line, fmt.Sprintf(format, args...)))
}

// open starts a file and returns its sections.
func (l *loader) open(file string, text *content) []section {
	l.file, l.literal, l.foreign = file, false, nil
	l.files = append(l.files, cmp.Or(file, l.unnamed))
	return scan(text.bytes, func(line int, message string) { l.fault(line, "%s", message) })
}

// close ends a file: one that holds a secret itself should be its owner's alone.
func (l *loader) close(text *content) {
	if l.literal {
		l.warnMode(l.file, text)
	}
}

// warnMode warns of a file with a secret that users have access to who need none. One that belongs to somebody else, such as what an
// orchestrator mounts, may be our group's: that is how it is readable to us.
func (l *loader) warnMode(file string, text *content) {
	open, advice := fs.FileMode(0o077), "chmod 600 "+file
	if text.foreign {
		open, advice = 0o037, "it belongs to another user, who should make that 640 or less"
	}
	if text.mode.IsRegular() && text.mode.Perm()&open != 0 {
		message := "holds a secret, and its mode lets other users at it: " + advice
		l.warnings = append(l.warnings, Diagnostic{file, 0, message})
	}
}

func (l *loader) readMain(file string, sections []section) {
	for _, s := range sections {
		if l.file = file; s.line < 0 {
			l.file = ""
		}
		if k := sectionOf(l.kinds, s.name); k != nil {
			k.read(l, s)
		} else if s.name != "" { // scan has reported it
			l.unknownSection(s)
		}
	}
	l.file = file
}

func (l *loader) readPeerDir(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.file = dir
		l.fault(0, "read peers: %v", cause(err))
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || filepath.Ext(e.Name()) != peerExt {
			continue
		}
		file := filepath.Join(dir, e.Name())
		text, err := l.readFile(file)
		if err != nil {
			l.file = file
			l.fault(0, "read peer: %v", cause(err))
			continue
		}
		for _, s := range l.open(file, text) {
			switch strings.ToLower(s.name) {
			case "peer":
				l.readPeer(s)
			case "":
			default:
				l.fault(s.line, "only [Peer] may stand in a file of %s", peerDir)
			}
		}
		l.close(text)
	}
}

func (l *loader) readPeer(s section) {
	p := &peerDraft{line: s.line, keys: map[string]int{}}
	p.File, p.Line = l.standsAt(s.line)
	readSection(l, s, peerKeys, p, p.keys)
	l.peers = append(l.peers, p)
}
