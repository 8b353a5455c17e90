package dns

// Domain is a domain whose names, and all below it, are asked from resolvers of its own. A reverse domain, as "10.in-addr.arpa", is one
// like any other.
type Domain struct {
	Name  string // "corp.example", in any case, with a last dot or without
	Route *Route // nobody else is asked: if it gives no answer, there is none
}

// domainOf returns the longest domain in which a name lies, and how many labels it has.
func (s *Server) domainOf(n *qname) (r *Route, labels int, ok bool) {
	if s.cfg.Domains == nil {
		return nil, 0, false
	}
	for _, d := range s.cfg.Domains() {
		if l, below := n.under(d.Name); below && (!ok || l > labels) {
			r, labels, ok = d.Route, l, true
		}
	}
	return r, labels, ok
}
