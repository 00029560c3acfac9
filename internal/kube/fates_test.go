package kube

import (
	"encoding/json"
	"reflect"
	"testing"
)

// TestFates sees that every field of every type that a file can have, by way
// of fields that are honoured, has a fate, and that there is no fate without a field.
func TestFates(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var visit func(reflect.Type)
	visit = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			visit(typ.Elem())
			return
		case reflect.String, reflect.Bool, reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint8:
			return
		}
		if reflect.PointerTo(typ).Implements(reflect.TypeFor[json.Unmarshaler]()) || seen[typ] {
			return
		}
		if typ.Kind() != reflect.Struct {
			t.Errorf("%s: decodeScalar can't read it", typ)
			return
		}
		seen[typ] = true
		if fates[typ] == nil {
			t.Errorf("%s has no rules", typ)
			return
		}
		fields := fieldsOf(typ)
		for name, index := range fields {
			rule, ok := fates[typ][name]
			if !ok {
				t.Errorf("%s: field %s has no fate", typ, name)
			}
			if (rule.fate == refused || rule.fate == hint) && rule.why == "" {
				t.Errorf("%s: field %s has no reason", typ, name)
			}
			if rule.fate == honoured {
				visit(typ.FieldByIndex(index).Type)
			}
		}
		for name := range fates[typ] {
			if _, ok := fields[name]; !ok {
				t.Errorf("%s: there is no field %s", typ, name)
			}
		}
	}
	for _, make := range kinds {
		visit(reflect.TypeOf(make()))
	}
	for typ := range fates {
		if !seen[typ] {
			t.Errorf("%s has rules, but can't be in a file", typ)
		}
	}
}
