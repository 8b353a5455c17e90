package report

import "math"

// Document is a measurement: cases, and what each contender brought in them.
type Document struct {
	Title       string
	Environment Env
	Options     any      // of the command, for JSON
	Notes       []string // sentences for the reader: how it was measured, what is missing
	Contenders  []string // the columns, in order
	Subject     string   // the contender that targets are about
	Pairs       []Pair   // the ratios to show, in order; targets are about the first whose Of is Subject
	Cases       []*Case  // the lines, in order; those of one group follow each other
}

// Pair is a ratio of medians: how much of To's figure Of has.
type Pair struct {
	Of string `json:"of"`
	To string `json:"to"`
}

// Case is one quantity, measured of several contenders in several rounds: one line of the table.
type Case struct {
	Group         string // the heading that it stands below
	Name          string
	Unit          string
	LowerIsBetter bool
	Target        *Target // nil: none
	Note          string  // what the reader should know about this line
	Samples       []Sample
}

// Sample is one value of one contender.
type Sample struct {
	Contender string  `json:"contender"`
	Round     int     `json:"round"` // samples of one round were taken next to each other
	Value     float64 `json:"value"` // finite
}

// Case returns the case of that name in the group, new if there is none. The first in a group brings the group after those that
// are there. unit is for a new one.
func (d *Document) Case(group, name, unit string) *Case {
	at := len(d.Cases)
	for i, c := range d.Cases {
		switch {
		case c.Group == group && c.Name == name:
			return c
		case c.Group == group:
			at = i + 1
		}
	}
	c := &Case{Group: group, Name: name, Unit: unit}
	d.Cases = append(d.Cases, nil)
	copy(d.Cases[at+1:], d.Cases[at:])
	d.Cases[at] = c
	return c
}

// Groups are the names of the groups, in order.
func (d *Document) Groups() (names []string) {
	for i, c := range d.Cases {
		if i == 0 || c.Group != d.Cases[i-1].Group {
			names = append(names, c.Group)
		}
	}
	return names
}

// Add adds a sample.
func (c *Case) Add(contender string, round int, value float64) {
	c.Samples = append(c.Samples, Sample{Contender: contender, Round: round, Value: value})
}

// Stats are those of one contender's samples.
func (c *Case) Stats(contender string) Stats {
	var v []float64
	for _, s := range c.Samples {
		if s.Contender == contender {
			v = append(v, s.Value)
		}
	}
	return Summary(v)
}

// Ratio is a pair's ratio in one case.
type Ratio struct {
	Pair
	// Ratio is that of the medians; Least and Most are those of single rounds, which the drift of a machine's speed from
	// round to round does not touch.
	Ratio float64 `json:"ratio"`
	Least float64 `json:"least"`
	Most  float64 `json:"most"`
}

// Ratio computes the ratio of a pair. There is none where one of both has no sample, the median to divide by is 0, or the result is no number.
func (c *Case) Ratio(p Pair) (r Ratio, ok bool) {
	of, to := c.Stats(p.Of), c.Stats(p.To)
	if of.N == 0 || to.N == 0 || to.Median == 0 {
		return Ratio{}, false
	}
	q := of.Median / to.Median
	if math.IsNaN(q) || math.IsInf(q, 0) {
		return Ratio{}, false
	}
	r = Ratio{Pair: p, Ratio: q, Least: q, Most: q}
	for _, single := range c.perRound(p) {
		r.Least, r.Most = min(r.Least, single), max(r.Most, single)
	}
	return r, true
}

// perRound are the ratios within the rounds that both have a sample in.
func (c *Case) perRound(p Pair) (ratios []float64) {
	divisor := map[int]float64{}
	for _, s := range c.Samples {
		if s.Contender == p.To {
			divisor[s.Round] = s.Value
		}
	}
	for _, s := range c.Samples {
		if d := divisor[s.Round]; s.Contender == p.Of && d != 0 {
			ratios = append(ratios, s.Value/d)
		}
	}
	return ratios
}
