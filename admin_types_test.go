package distributedratelimit

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// Every field of an answer, and of what is asked for, is on the page of the admin API.
func TestAdminFieldsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("docs/admin-api.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[reflect.Type]bool)
	var check func(of reflect.Type)
	check = func(of reflect.Type) {
		for of.Kind() == reflect.Pointer || of.Kind() == reflect.Slice || of.Kind() == reflect.Map {
			of = of.Elem()
		}
		if of.Kind() != reflect.Struct || of.PkgPath() != reflect.TypeFor[Zone]().PkgPath() || seen[of] {
			return
		}
		seen[of] = true
		for i := range of.NumField() {
			field := of.Field(i)
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if name != "" && !strings.Contains(string(text), "`"+name+"`") && !strings.Contains(string(text), `"`+name+`"`) {
				t.Errorf("docs/admin-api.md does not tell of %q (%v)", name, of)
			}
			check(field.Type)
		}
	}
	for _, of := range []any{[]zoneAnswer{}, []storeAnswer{}, explainAnswer{}, explainRequest{}} {
		check(reflect.TypeOf(of))
	}
	if len(seen) < 10 {
		t.Errorf("only %d types", len(seen))
	}
}
