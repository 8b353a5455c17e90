package node

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"testing"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/internal/packet"
)

// Every reason that status can show has an explanation.
func TestEveryDropIsExplained(t *testing.T) {
	var names []string
	for f := packet.FaultShort; int(f) < packet.NumFaults; f++ {
		names = append(names, f.String())
	}
	for r := filter.ReasonUnknownPeer; int(r) < filter.NumReasons; r++ {
		names = append(names, r.String())
	}
	pipeline := dropNames(t)
	if len(pipeline) < 10 {
		t.Fatalf("the data path's own reasons are not where they were: %q", pipeline)
	}
	for _, name := range append(names, pipeline...) {
		if explainDrop(name) == "" {
			t.Errorf("%s is not explained", name)
		}
	}
	if text := explainDrop("of-a-newer-version"); text != "" {
		t.Errorf("an unknown reason is explained as %q", text)
	}
}

// dropNames reads the list that netstack keeps to itself.
func dropNames(t *testing.T) (names []string) {
	file, err := parser.ParseFile(token.NewFileSet(), "../netstack/drop.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || spec.Names[0].Name != "dropNames" {
			return true
		}
		ast.Inspect(spec, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				name, _ := strconv.Unquote(lit.Value)
				names = append(names, name)
			}
			return true
		})
		return false
	})
	return names
}
