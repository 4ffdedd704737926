// `eventsource.cjs URL` prints the id and the data of each event until the server says that there are no more. That a
// connection is lost it leaves to the library, unless there never was one.
const EventSource = require("eventsource");

const source = new EventSource(process.argv[2]);
let opened = false;
// One that never comes to the end would go on for ever.
setTimeout(() => process.exit(1), 20_000).unref();
source.onopen = () => (opened = true);
source.onmessage = (event) => console.log(event.lastEventId, event.data);
source.onerror = (event) => {
  console.error(event.status ?? "", event.message ?? "");
  if (!opened) {
    source.close();
    process.exitCode = 1;
  }
};
