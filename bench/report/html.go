package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"
)

//go:embed page.html
var pageText string

// page is what the template is given.
type page struct {
	*Document
	About  []string
	Charts []chart
	Tables []table
	Less   bool // there are cases that are better the less they have
}

type table struct {
	Group string
	Lines []line
}

// WriteHTML writes the document as one page that needs nothing else, no script either: charts of the ratios, with whiskers
// from the least to the most of single rounds, and tables of all figures. The page is well-formed XML.
func (d *Document) WriteHTML(w io.Writer) error {
	t, err := template.New("page").Funcs(template.FuncMap{
		"px":    func(v float64) string { return fmt.Sprintf("%.1f", v) },
		"add":   func(a, b float64) float64 { return a + b },
		"class": func(v Verdict) string { return strings.ReplaceAll(string(v), " ", "") },
		"join":  strings.Join,
	}).Parse(pageText)
	if err != nil {
		return fmt.Errorf("read the template of the page: %w", err)
	}
	p := page{Document: d, About: d.Environment.describe()}
	for _, g := range d.Groups() {
		if c, ok := d.ratioChart(g); ok {
			p.Charts = append(p.Charts, c)
		}
		lines := table{Group: g}
		for _, c := range d.Cases {
			if c.Group == g {
				lines.Lines = append(lines.Lines, d.line(c))
				p.Less = p.Less || c.LowerIsBetter
			}
		}
		p.Tables = append(p.Tables, lines)
	}
	if c, ok := d.boundChart(); ok {
		p.Charts = append(p.Charts, c)
	}
	if err := t.Execute(w, p); err != nil {
		return fmt.Errorf("write %s as HTML: %w", d.Title, err)
	}
	return nil
}
