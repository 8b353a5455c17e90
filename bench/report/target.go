package report

import "fmt"

// Target is what a case ought to reach: a bound of the subject's ratio to its reference, or of its median.
type Target struct {
	Bound    Bound   `json:"bound"`
	Value    float64 `json:"value"`
	Absolute bool    `json:"absolute,omitempty"` // about the median, in the unit of the case, instead of the ratio
}

// Bound says on which side of a target's value a figure is to be.
type Bound string

// The bounds.
const (
	AtLeastBound Bound = ">="
	AtMostBound  Bound = "<="
	BelowBound   Bound = "<"
)

// RatioAtLeast is a target of the ratio.
func RatioAtLeast(v float64) *Target { return &Target{Bound: AtLeastBound, Value: v} }

// RatioAtMost is a target of the ratio.
func RatioAtMost(v float64) *Target { return &Target{Bound: AtMostBound, Value: v} }

// AtLeast is a target of the subject's median.
func AtLeast(v float64) *Target { return &Target{Bound: AtLeastBound, Value: v, Absolute: true} }

// AtMost is a target of the subject's median.
func AtMost(v float64) *Target { return &Target{Bound: AtMostBound, Value: v, Absolute: true} }

// Below is a target of the subject's median, which is to be less.
func Below(v float64) *Target { return &Target{Bound: BelowBound, Value: v, Absolute: true} }

// String is short: ">= 1.05".
func (t Target) String() string { return fmt.Sprintf("%s %s", t.Bound, trim(t.Value)) }

func (t Target) met(v float64) bool {
	switch t.Bound {
	case AtLeastBound:
		return v >= t.Value
	case AtMostBound:
		return v <= t.Value
	case BelowBound:
		return v < t.Value
	}
	return false
}

// Verdict says how a case stands to its target.
type Verdict string

// The verdicts.
const (
	NoTarget    Verdict = ""
	Met         Verdict = "met"
	NotMet      Verdict = "not met"
	NotMeasured Verdict = "not measured" // there is a target, but no figure to hold against it
)

// Verdict judges a case.
func (d *Document) Verdict(c *Case) Verdict {
	if c.Target == nil {
		return NoTarget
	}
	v, ok := d.judged(c)
	switch {
	case !ok:
		return NotMeasured
	case c.Target.met(v):
		return Met
	default:
		return NotMet
	}
}

// judged is the figure that the case's target is about.
func (d *Document) judged(c *Case) (v float64, ok bool) {
	if c.Target.Absolute {
		s := c.Stats(d.Subject)
		return s.Median, s.N > 0
	}
	for _, p := range d.Pairs {
		if p.Of == d.Subject {
			r, ok := c.Ratio(p)
			return r.Ratio, ok
		}
	}
	return 0, false
}
