package openmetrics

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	const good = "# TYPE a gauge\n# HELP a It is.\na 1\n# TYPE b_bytes counter\n# UNIT b_bytes bytes\n# HELP b_bytes Of \\\\ and \\n.\n" +
		"b_bytes_total{x=\"1\",y=\"a\\\"},{b\"} 2\nb_bytes_total{x=\"\",y=\"\"} 3e9\n# EOF\n"
	got, err := Parse([]byte(good))
	if err != nil || len(got) != 3 || got["a"] != 1 || got[`b_bytes_total{x="1",y="a\"},{b"}`] != 2 {
		t.Errorf("got %v, %v", got, err)
	}
	for name, text := range map[string]string{
		"no end":                 "# TYPE a gauge\n# HELP a x\na 1\n",
		"something behind":       good + "\n",
		"an empty line":          "# TYPE a gauge\n# HELP a x\n\na 1\n# EOF\n",
		"no type":                "# HELP a x\na 1\n# EOF\n",
		"no help":                "# TYPE a gauge\na 1\n# EOF\n",
		"no samples":             "# TYPE a gauge\n# HELP a x\n# EOF\n",
		"unknown type":           "# TYPE a thing\n# HELP a x\na 1\n# EOF\n",
		"type twice":             "# TYPE a gauge\n# TYPE a gauge\n# HELP a x\na 1\n# EOF\n",
		"help behind":            "# TYPE a gauge\na 1\n# HELP a x\n# EOF\n",
		"counter without suffix": "# TYPE a counter\n# HELP a x\na 1\n# EOF\n",
		"family with suffix":     "# TYPE a_total counter\n# HELP a_total x\na_total_total 1\n# EOF\n",
		"negative counter":       "# TYPE a counter\n# HELP a x\na_total -1\n# EOF\n",
		"info that is not 1":     "# TYPE a info\n# HELP a x\na_info{v=\"1\"} 2\n# EOF\n",
		"unit not in the name":   "# TYPE a gauge\n# UNIT a seconds\n# HELP a x\na 1\n# EOF\n",
		"interleaved":            "# TYPE a gauge\n# HELP a x\na 1\n# TYPE b gauge\n# HELP b x\nb 1\n# TYPE a gauge\n# HELP a x\na 2\n# EOF\n",
		"sample of another":      "# TYPE a gauge\n# HELP a x\nb 1\n# EOF\n",
		"sample twice":           "# TYPE a gauge\n# HELP a x\na 1\na 1\n# EOF\n",
		"label twice":            "# TYPE a gauge\n# HELP a x\na{x=\"1\",x=\"2\"} 1\n# EOF\n",
		"bad label":              "# TYPE a gauge\n# HELP a x\na{1=\"1\"} 1\n# EOF\n",
		"open quote":             "# TYPE a gauge\n# HELP a x\na{x=\"1} 1\n# EOF\n",
		"raw quote":              "# TYPE a gauge\n# HELP a x\na{x=\"1\"2\"} 1\n# EOF\n",
		"bad escape":             "# TYPE a gauge\n# HELP a x\na{x=\"\\t\"} 1\n# EOF\n",
		"empty labels":           "# TYPE a gauge\n# HELP a x\na{} 1\n# EOF\n",
		"two blanks":             "# TYPE a gauge\n# HELP a x\na  1\n# EOF\n",
		"a timestamp":            "# TYPE a gauge\n# HELP a x\na 1 1700000000\n# EOF\n",
		"no number":              "# TYPE a gauge\n# HELP a x\na one\n# EOF\n",
		"not UTF-8":              "# TYPE a gauge\n# HELP a \xff\na 1\n# EOF\n",
	} {
		if _, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("# TYPE a gauge\n# HELP a x\na{x=\"1\\n\"} 1\n# EOF\n")
	f.Fuzz(func(t *testing.T, text string) {
		values, err := Parse([]byte(text))
		for key := range values {
			if err == nil && !strings.Contains(text, key+" ") {
				t.Errorf("%q is not in the text", key)
			}
		}
	})
}
