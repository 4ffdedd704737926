// `resolve.mjs NAME` prints its addresses, as Node's own c-ares finds them.
import { Resolver } from "node:dns/promises";

const resolver = new Resolver({ timeout: 5000, tries: 1 });
const found = [await resolver.resolve4(process.argv[2]), await resolver.resolve6(process.argv[2])];
console.log(found.flat().join("\n"));
