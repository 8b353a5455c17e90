package report

import (
	"encoding/json"
	"fmt"
	"io"
)

// The JSON document: what Document holds, and what is computed from it.
type (
	jsonDocument struct {
		Title       string     `json:"title"`
		Environment Env        `json:"environment"`
		Options     any        `json:"options,omitempty"`
		Notes       []string   `json:"notes,omitempty"`
		Contenders  []string   `json:"contenders"`
		Subject     string     `json:"subject"`
		Cases       []jsonCase `json:"cases"`
	}
	jsonCase struct {
		Group         string           `json:"group"`
		Name          string           `json:"name"`
		Unit          string           `json:"unit,omitempty"`
		LowerIsBetter bool             `json:"lower_is_better"`
		Target        *Target          `json:"target,omitempty"`
		Verdict       Verdict          `json:"verdict,omitempty"`
		Note          string           `json:"note,omitempty"`
		Stats         map[string]Stats `json:"stats"` // by contender
		Ratios        []Ratio          `json:"ratios"`
		Samples       []Sample         `json:"samples"`
	}
)

// WriteJSON writes the document with every sample, and with what is computed from them. A sample that is not finite is an
// error.
func (d *Document) WriteJSON(w io.Writer) error {
	doc := jsonDocument{d.Title, d.Environment, d.Options, d.Notes, d.Contenders, d.Subject, []jsonCase{}}
	for _, c := range d.Cases {
		doc.Cases = append(doc.Cases, d.jsonCase(c))
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(doc); err != nil {
		return fmt.Errorf("write %s as JSON: %w", d.Title, err)
	}
	return nil
}

func (d *Document) jsonCase(c *Case) jsonCase {
	j := jsonCase{
		Group: c.Group, Name: c.Name, Unit: c.Unit, LowerIsBetter: c.LowerIsBetter, Target: c.Target, Verdict: d.Verdict(c), Note: c.Note,
		Stats: map[string]Stats{}, Ratios: []Ratio{}, Samples: append([]Sample{}, c.Samples...),
	}
	for _, name := range d.Contenders {
		if s := c.Stats(name); s.N > 0 {
			j.Stats[name] = s
		}
	}
	for _, p := range d.Pairs {
		if r, ok := c.Ratio(p); ok {
			j.Ratios = append(j.Ratios, r)
		}
	}
	return j
}
