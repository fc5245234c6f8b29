// Browsers start no worker from a file, and the search is one. Where the pages are opened as files, it works in a
// hidden frame instead, behind the same interface.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = `<script>
        addEventListener("message", event => { if (event.data.start) startScript(event.data.start); });
        function startScript(url) {
          self.postMessage = data => parent.postMessage({ worker: data }, "*");
          self.importScripts = () => {};
          const script = document.createElement("script");
          script.src = url;
          script.onload = () => parent.postMessage({ started: true }, "*");
          document.body.append(script);
        }
        parent.postMessage({ ready: true }, "*");
      <\/script>`;
      addEventListener("message", event => this.hear(event, url));
      document.readyState === "loading"
        ? document.addEventListener("DOMContentLoaded", () => document.body.append(this.frame))
        : document.body.append(this.frame);
    }
    hear(event, url) {
      if (event.source !== this.frame.contentWindow) return;
      if (event.data.ready) event.source.postMessage({ start: String(url) }, "*");
      else if (event.data.started) {
        this.started = true;
        this.waiting.forEach(data => this.postMessage(data));
      } else {
        const message = new MessageEvent("message", { data: event.data.worker });
        this.dispatchEvent(message);
        this.onmessage?.(message);
      }
    }
    postMessage(data) {
      // Not the frame's own, which is the worker's voice.
      if (this.started) window.postMessage.call(this.frame.contentWindow, data, "*");
      else this.waiting.push(data);
    }
    terminate() {
      this.frame.remove();
    }
  };
}
