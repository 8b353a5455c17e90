package punch

import "fmt"

// Technique is a way to get through hard NATs. Its numbers are on the wire, in exchange.Message.Technique.
type Technique uint8

// Techniques, in the order of their cost.
const (
	None       Technique = 0 // plain checks
	Prediction Technique = 1 // the port of the next mapping can be told
	LowPort    Technique = 2 // sockets on 600 to 1023, for which many NATs draw from these ports
	Sweep      Technique = 3 // all ports of the block that the NAT draws from
	Birthday   Technique = 4 // many sockets on one side, many guesses on the other

	NumTechniques = 5
)

// String names the technique, "technique N" if it is unknown.
func (t Technique) String() string {
	switch t {
	case None:
		return "plain"
	case Prediction:
		return "prediction"
	case LowPort:
		return "low ports"
	case Sweep:
		return "sweep"
	case Birthday:
		return "birthday"
	}
	return fmt.Sprintf("technique %d", uint8(t))
}
