package report

import "slices"

// line is a case as texts, for all writers that have people as readers.
type line struct {
	Name     string // with the unit
	Values   []cell // of the contenders
	Ratios   []cell // of the pairs
	Target   string
	Verdict  Verdict
	Absolute bool
	Note     string
}

// cell is a figure with its range. Both are empty where nothing was measured, and the range where it was but once.
type cell struct{ Text, Range string }

// less marks cases that are better the less they have.
const less = " ↓"

func (d *Document) line(c *Case) line {
	l := line{Name: c.Name, Verdict: d.Verdict(c), Note: c.Note}
	if c.Unit != "" {
		l.Name += ", " + c.Unit
	}
	if c.LowerIsBetter {
		l.Name += less
	}
	if c.Target != nil {
		l.Target, l.Absolute = c.Target.String(), c.Target.Absolute
	}
	for _, name := range d.Contenders {
		l.Values = append(l.Values, valueCell(c.Stats(name), d.targetOf(c, name)))
	}
	for i, p := range d.Pairs {
		r, ok := c.Ratio(p)
		l.Ratios = append(l.Ratios, ratioCell(r, ok, d.targetOfPair(c, i)))
	}
	return l
}

// targetOf is the target that a contender's median is held against; nil if it is not.
func (d *Document) targetOf(c *Case, contender string) *Target {
	if c.Target == nil || !c.Target.Absolute || contender != d.Subject {
		return nil
	}
	return c.Target
}

// targetOfPair is the target that a pair's ratio is held against; nil if it is not.
func (d *Document) targetOfPair(c *Case, i int) *Target {
	if c.Target == nil || c.Target.Absolute || i != slices.IndexFunc(d.Pairs, func(p Pair) bool { return p.Of == d.Subject }) {
		return nil
	}
	return c.Target
}

func valueCell(s Stats, t *Target) cell {
	switch s.N {
	case 0:
		return cell{}
	case 1:
		return cell{Text: valueText(s.Median, t)}
	default:
		return cell{valueText(s.Median, t), spread(Number(s.Least), Number(s.Most))}
	}
}

func ratioCell(r Ratio, ok bool, t *Target) cell {
	switch {
	case !ok:
		return cell{}
	case r.Least == r.Most:
		return cell{Text: ratioText(r.Ratio, t)}
	default:
		return cell{ratioText(r.Ratio, t), spread(ratioText(r.Least, nil), ratioText(r.Most, nil))}
	}
}

// String is "2.1 (1.9 to 2.4)"; "-" for nothing.
func (c cell) String() string {
	switch {
	case c.Text == "":
		return "-"
	case c.Range == "":
		return c.Text
	default:
		return c.Text + " (" + c.Range + ")"
	}
}

// describe is the environment in a few lines.
func (e Env) describe() (lines []string) {
	first := e.Host
	for _, part := range []string{prefixed("Linux ", e.Kernel), prefixed(trim(float64(e.Cores))+" x ", e.CPU), e.Go, prefixed("kernel TCP ", e.TCP), prefixed("load before ", e.Load)} {
		if part != "" {
			first += ", " + part
		}
	}
	second := e.Date.Format("2006-01-02 15:04 MST")
	second += prefixed(", commit ", e.Commit)
	return []string{first, second}
}

func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}
