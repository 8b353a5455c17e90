// Package openmetrics reads the text format of OpenMetrics 1.0.0 strictly, as far as Culvert writes it: gauges, counters and
// info, without timestamps and exemplars. It exists to test what the program writes; the program itself does not read metrics.
//
//	samples, err := openmetrics.Parse(body)
//	if samples[`culvert_flows{proto="tcp"}`] < 1 {
//		t.Error("no flow")
//	}
package openmetrics

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

var (
	metricName = regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*$`)
	labelName  = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
)

// suffixes are what a sample's name has behind its family's, by type.
var suffixes = map[string]string{"gauge": "", "counter": "_total", "info": "_info"}

type family struct {
	name, kind, unit string
	help             bool
	samples          int
}

// Parse returns the values by sample, written as in text, with labels in their order there. An error begins with the line's number.
func Parse(text []byte) (map[string]float64, error) {
	p := parser{values: make(map[string]float64), seen: make(map[string]bool)}
	if !utf8.Valid(text) {
		return nil, fmt.Errorf("not UTF-8")
	}
	rest, ok := strings.CutSuffix(string(text), "# EOF\n")
	if !ok {
		return nil, fmt.Errorf("does not end with # EOF and a line feed")
	}
	number := 0
	for line := range strings.Lines(rest) {
		number++
		line, ok := strings.CutSuffix(line, "\n")
		if !ok {
			return nil, fmt.Errorf("%d: # EOF is not on a line of its own", number)
		}
		if err := p.line(line); err != nil {
			return nil, fmt.Errorf("%d: %w: %s", number, err, line)
		}
	}
	return p.values, p.finish()
}

type parser struct {
	family family
	seen   map[string]bool // families
	values map[string]float64
}

func (p *parser) line(s string) error {
	meta, ok := strings.CutPrefix(s, "# ")
	if !ok {
		return p.sample(s)
	}
	words := strings.SplitN(meta, " ", 3)
	if len(words) != 3 {
		return fmt.Errorf("neither TYPE, UNIT nor HELP with a name and a text")
	}
	if words[1] != p.family.name {
		if err := p.begin(words[1]); err != nil {
			return err
		}
	}
	f := &p.family
	switch {
	case f.samples > 0:
		return fmt.Errorf("metadata behind samples")
	case words[0] == "TYPE" && f.kind == "":
		if _, ok := suffixes[words[2]]; !ok {
			return fmt.Errorf("unknown type %q", words[2])
		}
		f.kind = words[2]
	case words[0] == "UNIT" && f.unit == "":
		if f.unit = words[2]; !strings.HasSuffix(f.name, "_"+f.unit) {
			return fmt.Errorf("the name does not end in its unit")
		}
	case words[0] == "HELP" && !f.help:
		f.help = true
		_, err := unescape(words[2])
		return err
	default:
		return fmt.Errorf("%s is unknown or given twice", words[0])
	}
	return nil
}

func (p *parser) begin(name string) error {
	if err := p.finish(); err != nil {
		return err
	}
	switch {
	case !metricName.MatchString(name):
		return fmt.Errorf("bad name %q", name)
	case p.seen[name]:
		return fmt.Errorf("%s is in two places", name)
	case strings.HasSuffix(name, "_total"), strings.HasSuffix(name, "_info"):
		return fmt.Errorf("the name of a family ends in a suffix of samples")
	}
	p.seen[name] = true
	p.family = family{name: name}
	return nil
}

// finish checks the family that has ended.
func (p *parser) finish() error {
	if f := p.family; f.name != "" && (f.kind == "" || !f.help || f.samples == 0) {
		return fmt.Errorf("%s lacks a type, a help text or samples", f.name)
	}
	return nil
}

func (p *parser) sample(s string) error {
	f := &p.family
	name := s[:len(s)-len(strings.TrimLeft(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_:"))]
	if f.kind == "" || name != f.name+suffixes[f.kind] {
		return fmt.Errorf("no sample of the %s %s", f.kind, f.name)
	}
	labels, value, err := splitLabels(s[len(name):])
	if err != nil {
		return err
	}
	v, err := strconv.ParseFloat(value, 64)
	switch {
	case err != nil || strings.ContainsAny(value, "xX_ "):
		return fmt.Errorf("bad value %q", value)
	case f.kind == "counter" && (v < 0 || math.IsNaN(v)), f.kind == "info" && v != 1:
		return fmt.Errorf("a %s cannot be %s", f.kind, value)
	}
	key := name + labels
	if _, twice := p.values[key]; twice {
		return fmt.Errorf("given twice")
	}
	p.values[key] = v
	f.samples++
	return nil
}

// splitLabels takes what follows a sample's name apart: the labels, which it checks, and the value.
func splitLabels(s string) (labels, value string, err error) {
	rest, ok := strings.CutPrefix(s, "{")
	if !ok {
		value, ok = strings.CutPrefix(s, " ")
		if !ok {
			return "", "", fmt.Errorf("no blank before the value")
		}
		return "", value, nil
	}
	seen := make(map[string]bool)
	for {
		name, after, ok := strings.Cut(rest, `="`)
		if !ok || !labelName.MatchString(name) || seen[name] {
			return "", "", fmt.Errorf("bad label %q", name)
		}
		seen[name] = true
		n := closingQuote(after)
		if n < 0 {
			return "", "", fmt.Errorf("the value of %s does not end", name)
		}
		if _, err := unescape(after[:n]); err != nil {
			return "", "", err
		}
		rest = after[n+1:]
		if next, ok := strings.CutPrefix(rest, ","); ok {
			rest = next
			continue
		}
		value, ok := strings.CutPrefix(rest, "} ")
		if !ok {
			return "", "", fmt.Errorf("labels do not end in } and a blank")
		}
		return s[:len(s)-len(value)-1], value, nil
	}
}

// closingQuote is the place of the first quote that is not escaped, or -1.
func closingQuote(s string) int {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i
		}
	}
	return -1
}

func unescape(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		if i++; i == len(s) || !strings.ContainsRune(`\"n`, rune(s[i])) {
			return "", fmt.Errorf("bad escape in %q", s)
		}
		b.WriteByte(map[byte]byte{'\\': '\\', '"': '"', 'n': '\n'}[s[i]])
	}
	return b.String(), nil
}
