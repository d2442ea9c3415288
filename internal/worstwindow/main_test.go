package main

import (
	"os"
	"testing"
)

// TestPictureIsUpToDate: the picture shows what the tables say.
func TestPictureIsUpToDate(t *testing.T) {
	page, err := os.ReadFile("../../" + from)
	if err != nil {
		t.Fatal(err)
	}
	want, err := draw(string(page))
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../" + to)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what %s says; run: go run ./internal/worstwindow", to, from)
	}
}

// TestRead: the worst row of each limiter counts, and all of this module's rows are
// this module's.
func TestRead(t *testing.T) {
	page := `
## Accuracy

| limiter                   | attempts | granted | most in W | most / L | utilisation | killed | errors |
| ------------------------- | -------: | ------: | --------: | -------: | ----------: | -----: | -----: |
| this module, leases on    |      100 |      60 |        15 |   99.0 % |      98.0 % |      0 |      0 |
| a <rival>                 |      100 |      60 |        29 |  120.0 % |      98.0 % |      0 |      0 |
| this module, leases off   |      100 |      60 |        15 |  100.0 % |      98.0 % |      0 |      0 |
| a <rival>                 |      100 |      60 |        29 |  199.5 % |     102.0 % |      0 |      0 |

## The handler
| limiter | 1 | 2 | 3 | 900.0 % | 5 | 6 | 7 |
`
	bars, err := read(page)
	if err != nil {
		t.Fatal(err)
	}
	want := []bar{{"this module", 100}, {"a <rival>", 199.5}}
	if len(bars) != 2 || bars[0] != want[0] || bars[1] != want[1] {
		t.Errorf("%v, want %v", bars, want)
	}
}
