// The entry point: TensorBoard imports this module into a frame of its own and calls render().
import {App} from './app.js';
import {element} from './dom.js';
import {ServerSource} from './source.js';

export function render() {
  document.documentElement.lang = 'en';
  document.head.append(element('link', {rel: 'stylesheet', href: './static/style.css'}));
  const root = element('div', {id: 'symmetry'});
  document.body.append(root);
  new App(root, new ServerSource()).start();
}
